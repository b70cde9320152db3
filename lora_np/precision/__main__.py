"""Prints the table of docs/precision.md."""

from .table import table

if __name__ == "__main__":
    print(table())
