"""The commands, by who uses them. Thin: each calls one function of a room and prints what it gave; `ingest.cli` finds them."""
