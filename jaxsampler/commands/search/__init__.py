"""`jaxsampler search CONFIG`: search for better samplers of one problem, and say how much better they are."""
