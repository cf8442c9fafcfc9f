"""A page of the admin that tells how the servers are, the same as JSON, and whether the site can serve."""
