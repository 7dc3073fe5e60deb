"""One run over many machines: an engine starts a process on each, which becomes its agent."""
