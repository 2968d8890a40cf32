-- How fast streams are opened: each costs the agent most of a millisecond, also where it refuses it, and everybody's next one waits behind it.
--
-- This thread of Envoy's lets OPENED streams through at once, whoever opens them; then, as these fade, as many in SECONDS. Beyond it, each
-- connection that opened some of late has an equal part of OPENED, and at least LEAST: who opens few is let in while others open without
-- end. Nothing waits here: what is beyond its connection's part is refused, before anything is made of it.
--
-- One Lua VM per thread; a connection stays on its thread. bootstrap.py puts OPENED, LEAST and SECONDS in front.

local Opening = {}                       -- what tests call
local STEP = 100                         -- ms between two looks at all counts
local opened, total, connections, at = {}, 0, 0, 0  -- a count for each connection, which fades; their sum and number; ms

local function fade(now)
  local rest = math.exp((at - now) / 1000 / SECONDS)
  total, connections, at = 0, 0, now
  for connection, value in pairs(opened) do
    value = value * rest
    if value < 0.5 then value = nil else total, connections = total + value, connections + 1 end
    opened[connection] = value
  end
end

-- Whether one more may be opened; then it counts.
function Opening.admits(connection, now)
  if now - at >= STEP then fade(now) elseif now < at then at = now end   -- a clock that was set back
  local mine = opened[connection] or 0
  local sharing = connections + (mine == 0 and 1 or 0)
  if total >= OPENED and mine >= math.max(OPENED / sharing, LEAST) then return false end
  opened[connection], total, connections = mine + 1, total + 1, sharing
  return true
end

local function check(h)
  if Opening.admits(h:headers():get("dormouse-connection"), tonumber(h:timestamp())) then return end
  h:respond({[":status"] = "200", ["content-type"] = "application/grpc", ["grpc-status"] = "8",
             ["grpc-message"] = "streams are opened faster than this gateway takes them, and this connection has had its share; try again later"})
end

function envoy_on_request(h)
  local ok, problem = pcall(check, h)
  if not ok then h:logErr("opening.lua: " .. tostring(problem)) end
end
