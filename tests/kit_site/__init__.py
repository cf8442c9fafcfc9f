"""The app of the small site that the kit is tried in: copied there, never imported here."""
