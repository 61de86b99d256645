"""The scripts that count in Redis, each at once for all quotas of a client."""

# The rule of rill/admission/sliding_window.py for the quotas of one client: count one request if none is used up.
# KEYS: a hash of `begun current previous` by the window's seconds.
# ARGV: the number of quotas, and `amount, seconds` of each. Return the seconds left of each.
RATE = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local waits, counts, exceeded, expiry, last = {}, {}, false, 0, 1 + 2 * ARGV[1]
for i = 2, last, 2 do
    local amount, seconds = tonumber(ARGV[i]), tonumber(ARGV[i + 1])
    local known = redis.call('HGET', KEYS[1], ARGV[i + 1]) or ''
    local begun, current, previous = string.match(known, '(%S+) (%S+) (%S+)')
    begun, current, previous = tonumber(begun), tonumber(current), tonumber(previous)
    if not begun or now >= begun + 2 * seconds or now < begun then
        begun, current, previous = now, 0, 0
    elseif now >= begun + seconds then
        begun, current, previous = begun + seconds, 0, current
    end
    local elapsed, wait = now - begun, 0
    if math.floor(previous * (1 - elapsed / seconds)) + current >= amount then
        if current < amount then
            wait = seconds * (1 - (amount - current) / previous) - elapsed
        else
            wait = seconds * (2 - amount / current) - elapsed
        end
        wait = math.max(0, wait)
    end
    exceeded = exceeded or wait > 0
    waits[#waits + 1] = tostring(wait)
    counts[ARGV[i + 1]] = string.format('%.6f %d %d', begun, current + 1, previous)
    expiry = math.max(expiry, 2 * seconds)
end
if not exceeded then
    for seconds, count in pairs(counts) do
        redis.call('HSET', KEYS[1], seconds, count)
    end
    redis.call('EXPIRE', KEYS[1], expiry)
end
"""

COUNT = RATE + "return waits"

# What a client has used and reserved.
# KEYS: the last one is a hash of `window used` by the window's seconds, and of `tokens expiry` by a reservation's id.
BUDGET = """
local key, reserved, used = KEYS[#KEYS], 0, {}
local fields = redis.call('HGETALL', key)
for i = 1, #fields, 2 do
    local first, second = string.match(fields[i + 1], '(%S+) (%S+)')
    if string.sub(fields[i], 1, 1) ~= 'r' then
        used[fields[i]] = {tonumber(first), tonumber(second)}
    elseif tonumber(second) > now then
        reserved = reserved + tonumber(first)
    else
        redis.call('HDEL', key, fields[i])
    end
end
local function used_in(seconds)
    local known = used[seconds]
    return known and known[1] == math.floor(now / seconds) and known[2] or 0
end
"""

# Count one request, and reserve between `least` and `most` tokens for it.
# ARGV: as above, then the reservation's id, its seconds, `least`, `most`, and `amount, seconds` of each budget.
# Return the seconds left of each rate; if none, also the tokens granted, reserved before, and used of each budget.
RESERVE = (
    RATE
    + "if exceeded then return {waits} end"
    + BUDGET
    + """
local id, lifetime, least, most = unpack(ARGV, last + 1, last + 4)
local left, uses = tonumber(most), {}
for i = last + 5, #ARGV, 2 do
    uses[#uses + 1] = used_in(ARGV[i + 1])
    left = math.min(left, ARGV[i] - uses[#uses] - reserved)
end
if left < tonumber(least) then
    return {waits, 0, reserved, uses}
end
redis.call('HSET', key, 'r' .. id, string.format('%d %.3f', left, now + lifetime))
redis.call('EXPIRE', key, math.max(lifetime, redis.call('TTL', key)))
return {waits, left, reserved, uses}
"""
)

CLOCK = """
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
"""

# Replace a reservation by a charge. ARGV: the reservation's id, the tokens, and the seconds of each budget.
# Return the tokens used of each budget.
SETTLE = (
    CLOCK
    + BUDGET
    + """
redis.call('HDEL', key, 'r' .. ARGV[1])
local uses, expiry = {}, redis.call('TTL', key)
for i = 3, #ARGV do
    uses[#uses + 1] = used_in(ARGV[i]) + ARGV[2]
    redis.call('HSET', key, ARGV[i], string.format('%d %d', math.floor(now / ARGV[i]), uses[#uses]))
    expiry = math.max(expiry, math.ceil(ARGV[i] - now % ARGV[i]))
end
redis.call('EXPIRE', key, expiry)
return uses
"""
)

# ARGV: the seconds of each budget. Return the tokens that are reserved, and used of each budget.
USAGE = (
    CLOCK
    + BUDGET
    + """
local uses = {}
for i = 1, #ARGV do
    uses[i] = used_in(ARGV[i])
end
return {reserved, uses}
"""
)
