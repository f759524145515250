"""Triggers, recipes, and data that is poisoned by them."""
