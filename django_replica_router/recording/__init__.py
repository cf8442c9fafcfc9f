"""What was written: statements and saves go in; tokens, and what a reader must see, come out."""
