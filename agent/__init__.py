"""The controlling agent: policy, planner graph, search, trace, report, command line."""
