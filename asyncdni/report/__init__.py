"""What runs leave and what is made of it: records, statistics, tables, pages, plots, traces."""
