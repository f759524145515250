"""Labelled text of our own making: a file a generator, and a row in the task table."""

from lightpeft.tasks.synthetic.generation import Example, Generator, Split
from lightpeft.tasks.synthetic.sentiment import generate_sentiment

__all__ = ["Example", "Generator", "Split", "generate_sentiment"]
