"""Virtual time: links, devices, servers and fleets driven by the live objects, the training environment and oracles."""
