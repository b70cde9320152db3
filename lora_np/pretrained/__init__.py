"""The small base model that ships, and the script that made it."""
