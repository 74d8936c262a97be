"""The processes behind `-P prefork`: a zygote, the nurseries it forks, and the children these fork."""
