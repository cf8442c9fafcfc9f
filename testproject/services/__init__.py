"""A shop with a worker, and a courier's service that it calls: who acts for a user sees what the user has written."""
