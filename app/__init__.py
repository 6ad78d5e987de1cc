"""The web app: drop a photo, watch it become a head, turn it, change it, take it along. Read `server.py` first."""
