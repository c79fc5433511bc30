"""The rehearsal of a year: real DAG runs, a real gateway, and flights replayed in event order."""
