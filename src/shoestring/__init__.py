"""shoestring: the best small reasoning model that a stated budget buys, with an itemised bill."""

__version__ = "0.1.0"
