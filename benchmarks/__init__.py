"""The comparison with the usual tools: `make bench`. docs/benchmarks.md says what each row means."""
