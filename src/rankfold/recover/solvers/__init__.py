"""From measurements to factors: functions of arrays, without names and files."""
