"""LoRITa: tables and figures."""
