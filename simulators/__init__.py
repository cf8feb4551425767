"""Pumps that speak the same bytes as real ones, from a seeded therapy script with scripted faults."""
