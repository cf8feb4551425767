"""What a pump says: formats without I/O. Each family is one module here; `families` finds them, `contract` says what they owe."""
