"""How the servers are, and what was read from them, for people and scripts. No query on the way of a request.

What monitors know and what processes have counted comes in; values that a command or a page shows go out.
"""
