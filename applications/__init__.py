"""Well-known applications, unchanged, on replicas that lag: do they show what they show on one database?

Run it by ``python -m applications``. It installs each application from the registry of packages into an
environment of its own, so it is no part of the tests.
"""
