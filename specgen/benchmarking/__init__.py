"""How fast, and how sure of it: timing, rows of one schema, tables."""
