-- What is done to the projection as a whole, if the caller still holds the lease.
--
-- KEYS[1]  lease: the token of the projector that may write
-- KEYS[2]  current: the generation that is read
-- KEYS[3]  generations: a hash whose fields are those that exist, and `next`, which counts them
-- KEYS[4]  rebuild: set by whoever wants the projection built anew
-- ARGV[1]  the caller's token
-- ARGV[2]  key prefix of all generations
-- ARGV[3]  begin    a generation, built from ARGV[4] and the rows behind number ARGV[5]; whoever
--                   wanted a rebuild is answered by it
--          publish  generation ARGV[4]: it is read from now on
--          retract  the current generation: none is read from now on
--          release  the lease
--
-- Returns the generation begun, or else 0; nil when the lease is another's by now.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return false
end
if ARGV[3] == 'begin' then
  local generation = redis.call('HINCRBY', KEYS[3], 'next', 1)
  redis.call('HSET', KEYS[3], generation, 1)
  redis.call('HSET', ARGV[2] .. generation .. ':state', 'seq', ARGV[5], 'source', ARGV[4])
  redis.call('DEL', KEYS[4])
  return generation
end
if ARGV[3] == 'publish' then
  redis.call('SET', KEYS[2], ARGV[4])
elseif ARGV[3] == 'retract' then
  redis.call('DEL', KEYS[2])
elseif ARGV[3] == 'release' then
  redis.call('DEL', KEYS[1])
end
return 0
