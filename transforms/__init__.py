"""Pure: events to time, sessions, set-ups, facts and lines. Tables in, tables out; no I/O, no clock, no environment."""
