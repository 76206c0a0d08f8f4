"""The bundled rule files, one per model family."""
