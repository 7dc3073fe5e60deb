"""The page that shows a run in a browser while it goes on, or after it has ended.

```
 records of the coordinator ──► state (what is shown) ──► server ──► browser: assets/
 metrics.jsonl of a folder  ──┘                             └─────► Prometheus: metrics
```

The server needs the extra `page`, and nothing else imports its libraries. `comparison` writes the
page of a comparison's runs to one file, `compare.html`, without them.
"""
