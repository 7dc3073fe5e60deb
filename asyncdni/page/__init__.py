"""The page that shows a run in a browser while it goes on, or after it has ended.

```
 records of the coordinator ──► state (what is shown) ──► server ──► browser: assets/
 metrics.jsonl of a folder  ──┘                             └─────► Prometheus: metrics
```

Needs the extra `page`; nothing else imports its libraries.
"""
