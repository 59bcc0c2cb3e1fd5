-- Applies rows of the log to the projection, in one step with the watermark.
--
-- KEYS[1]  watermark: the sequence number of the last row applied
-- ARGV[1]  watermark that the caller read the rows behind; the rows are applied
--          only if it still stands, so any number of projectors apply each row once
-- ARGV[2]  watermark after these rows
-- ARGV[3]  key prefix; it holds the hash tag that keeps all keys in one slot
-- ARGV[4]  interactions kept as a user's history
-- ARGV[5]  videos kept as seen by a user
-- ARGV[6]  videos kept as trending
-- ARGV[7]  half-life in seconds
-- ARGV[8]  window in seconds
-- ARGV[9...]  six values a row: sequence number, user, video, kind, event time in
--             microseconds, log2 of the kind's weight ('' when it weighs nothing)
--
-- Returns the watermark that stands afterwards.
local standing = redis.call('GET', KEYS[1]) or '0'
if standing ~= ARGV[1] then
  return standing
end

local prefix = ARGV[3]
local history_limit, seen_limit, trending_limit = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local half_life_s, window_s = tonumber(ARGV[7]), tonumber(ARGV[8])
local trending = prefix .. 'trending'
local touched = {}

-- Forward decay (Cormode et al., "Forward Decay", 2009) with scores kept as log2, so that
-- nothing overflows and late events are exact: a weight w at time t adds w * 2^(t/half_life).
local function add_to_trending(video, seconds, log2_weight)
  local x = seconds / half_life_s + log2_weight
  local s = tonumber(redis.call('ZSCORE', trending, video) or '-inf')
  local high, low = math.max(s, x), math.min(s, x)
  local sum = high + math.log(1 + 2 ^ (low - high)) / math.log(2)
  redis.call('ZADD', trending, string.format('%.17g', sum), video)
end

for i = 9, #ARGV, 6 do
  local seq, user, video, kind, time_us, log2_weight = unpack(ARGV, i, i + 5)
  local seconds = tonumber(time_us) / 1e6
  local history, seen = prefix .. 'history:' .. user, prefix .. 'seen:' .. user
  redis.call('RPUSH', history, kind .. ':' .. time_us .. ':' .. video)
  redis.call('ZADD', seen, seq, video)
  touched[user] = true
  if log2_weight ~= '' then
    -- One user counts once per video, kind and window. Windows are aligned to the epoch, so
    -- that the order in which events arrive does not matter.
    local window = math.floor(seconds / window_s)
    local counted = prefix .. 'counted:' .. user
    if redis.call('ZADD', counted, 'NX', window, window .. ':' .. kind .. ':' .. video) == 1 then
      add_to_trending(video, seconds, tonumber(log2_weight))
    end
  end
end

for user in pairs(touched) do
  redis.call('LTRIM', prefix .. 'history:' .. user, -history_limit, -1)
  redis.call('ZREMRANGEBYRANK', prefix .. 'seen:' .. user, 0, -seen_limit - 1)
  redis.call('ZREMRANGEBYRANK', prefix .. 'counted:' .. user, 0, -4 * seen_limit - 1)
end
redis.call('ZREMRANGEBYRANK', trending, 0, -trending_limit - 1)
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
