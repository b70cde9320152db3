r"""What stands on disk: reading once, writing whole, folders that are ours, and nothing else touched."""
