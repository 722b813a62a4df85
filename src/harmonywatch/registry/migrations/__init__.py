"""The steps from one schema of the state database to the next; `migrate.py` applies them."""

SCHEMA_HEAD = "0001"
"""The last step. A constant, so that finding a database up to date needs no reading of the steps."""
