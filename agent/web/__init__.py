"""Web page: `mewm serve`. It reads the same events, tools and stores as the command line, and adds no logic."""
