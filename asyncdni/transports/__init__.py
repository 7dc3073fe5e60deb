"""The wire: `codec` (messages to frames), `zeromq` (frames to peers), `beat` (signs of life),
`curve` (keys).

ZeroMQ is imported in this folder only; `codec` and `address` do without it.
"""
