"""The folder of a run: what is in it, how it is read, drawn, compared and exported."""
