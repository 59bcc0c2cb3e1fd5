-- Takes or keeps the right to write the projection.
--
-- KEYS[1]  lease: the token of the projector that may write
-- KEYS[2]  fence: how often the lease was taken
-- KEYS[3]  rebuild: set by whoever wants the projection built anew
-- ARGV[1]  the caller's token, empty when it has none
-- ARGV[2]  what makes a new token the caller's own
-- ARGV[3]  how long the lease holds from now on, milliseconds
--
-- Returns {token, 1 when a rebuild is wanted}; nil when the lease is another's.
local holder = redis.call('GET', KEYS[1])
local token = ARGV[1]
if holder and holder ~= token then
  return false
end
if not holder then
  -- Also for who held it until it ran out: what another did in between must be noticed.
  token = redis.call('INCR', KEYS[2]) .. ':' .. ARGV[2]
end
redis.call('SET', KEYS[1], token, 'PX', ARGV[3])
return {token, redis.call('EXISTS', KEYS[3])}
