"""Prices, the ledger, the budget and the bill. Quantities come in, dollars are made here and only here."""
