"""What surrounds a datapath on the machine: network namespaces, cgroups, devices, packets."""
