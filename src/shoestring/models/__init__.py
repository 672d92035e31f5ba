"""One decoder, its parts, one file per family. Hugging Face weights in, Hugging Face weights out."""
