module go_handler

go 1.19
