"""What merged folders call themselves to transformers."""

MODEL_TYPE = "lightpeft (a cut model: import lightpeft first, or use lightpeft.load_merged)"
"""An architecture that `import lightpeft` makes known; elsewhere the error that names it says what to do."""
