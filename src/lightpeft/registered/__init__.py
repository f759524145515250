"""Merged folders under transformers' own names: `AutoModel*.from_pretrained` and `pipeline` read them.

`import lightpeft` arranges that the modules here are imported once transformers has its tables of
architectures, so that importing lightpeft stays quick.
"""
