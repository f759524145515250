"""Builders that the core rooms' tests share."""
