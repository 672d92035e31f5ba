"""What a step costs before it is run: FLOPs, bytes, seconds. Standard library only; never imports torch."""
