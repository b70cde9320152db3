r"""Merges of other programs: judged tensor by tensor, faults named, writers replayed, adapters inspected."""
