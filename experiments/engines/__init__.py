"""Where runs are trained, whatever they are runs of: processes of this machine, or tasks on Ray."""
