"""Problem sources, deduplication, decontamination, selection, packing."""
