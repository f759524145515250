"""Labelled text of our own making: a file a generator, and a row in the task table."""

from lightpeft.tasks.synthetic.generation import Example, Generator, Split
from lightpeft.tasks.synthetic.reviews import generate_reviews
from lightpeft.tasks.synthetic.sentiment import generate_sentiment
from lightpeft.tasks.synthetic.spam import generate_sms, generate_spam

__all__ = [
    "Example",
    "Generator",
    "Split",
    "generate_reviews",
    "generate_sentiment",
    "generate_sms",
    "generate_spam",
]
