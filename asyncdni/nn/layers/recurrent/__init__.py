"""Recurrent layers: windows of a stream, state carried between them, futures predicted."""
