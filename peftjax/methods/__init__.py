"""The methods: one file each, its mathematics readable in one sitting."""
