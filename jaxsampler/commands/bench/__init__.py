"""Benchmarks: what samplers cost and how exact they are, by `jaxsampler bench`."""
